"""An HTTP server with OpenAI's interface, on the scheduler of a session."""
