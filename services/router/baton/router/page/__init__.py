"""The page at `/`: chat, workers and the last requests. Plain files that the browser reads as they are."""
