"""What browsers show: the chat at ``/`` and the API at ``/docs``, as files that nothing is built from."""
