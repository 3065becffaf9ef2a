"""Anthropic's API as this server speaks it: requests that come to a chat, answers of content blocks, its errors."""
