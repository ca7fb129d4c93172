"""The StethoLM platform: train and serve an audio-language model of heart and lung sounds."""
