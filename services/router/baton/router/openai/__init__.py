"""The OpenAI API as this server speaks it: requests, answers, events, refusals."""
