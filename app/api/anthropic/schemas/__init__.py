"""What the routes of the Messages protocol take and answer."""
