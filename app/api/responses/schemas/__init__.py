"""What the Responses protocol takes, and what it answers."""
