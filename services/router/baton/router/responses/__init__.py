"""OpenAI's Responses API: requests that come to a chat, answers of items, and the answers that are kept."""
