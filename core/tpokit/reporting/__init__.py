"""What people see: console and pictures."""
