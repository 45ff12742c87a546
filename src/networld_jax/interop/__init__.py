"""Exchange with other software: `diffuser` (weights), `vault` (datasets), `deployment` (an agent that runs alone)."""
