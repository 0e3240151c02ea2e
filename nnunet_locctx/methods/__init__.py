"""The methods side by side: each trainer with its purpose, origin, cost and measured effect."""
