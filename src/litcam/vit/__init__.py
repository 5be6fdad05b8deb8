"""The door to a model: every explanation method goes through here, and what a forward did is seen, not guessed."""
