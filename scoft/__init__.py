"""What the commands stand on: each module says in its first line what it is for."""
