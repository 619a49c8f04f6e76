"""What several test modules check, and what they check with."""
