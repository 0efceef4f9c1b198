"""What tenants are, on disk: their file, their keys, what they used. The rules are in `admission`."""
