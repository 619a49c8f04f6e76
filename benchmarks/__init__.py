"""What is measured, and what is read off compiled programs; README.md says how."""
