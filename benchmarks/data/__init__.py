"""How fast samples come, how long training waits for them, what memory that takes, how soon a killed run goes on."""
