"""Install a bundle into the workspace: once, verified, and never half."""
