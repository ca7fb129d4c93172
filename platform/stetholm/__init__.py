"""The StethoLM platform: train and serve an audio-language model of heart and lung sounds."""

from stetholm import environment as environment  # first: libraries read these variables when they are imported
