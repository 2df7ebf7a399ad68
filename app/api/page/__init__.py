"""What people see in a browser: the chat at ``/`` and the API's page at ``/docs``, as files that nothing is built from."""
