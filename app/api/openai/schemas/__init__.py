"""What the OpenAI protocol's routes take and answer."""
