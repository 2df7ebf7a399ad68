"""SmolLM3: a Llama of which some layers rotate nothing."""
