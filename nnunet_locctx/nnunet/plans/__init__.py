"""Plans: presets of the papers, memory, and which trainers suit a configuration."""
