"""Models from a hub: what to fetch, fetching it, proving it whole, and putting it in its place at once."""
