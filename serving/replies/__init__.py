"""Replies as OpenAI describes them: chat, completions, and streams of events."""
