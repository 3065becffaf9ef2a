"""The OpenAI API as this server speaks it: requests, answers, chunks, refusals."""
