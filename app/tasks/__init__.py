"""What a model can be asked to do, in terms that no protocol owns: one file a task."""
