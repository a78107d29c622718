"""The type of a chat message."""

Message = dict[str, str]
"""``{"role": ..., "content": ...}``; roles are system, user, assistant and tool."""
