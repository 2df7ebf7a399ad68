"""What the routes of Ollama's protocol take and answer."""
