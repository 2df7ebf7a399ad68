"""What these routes take and answer."""
