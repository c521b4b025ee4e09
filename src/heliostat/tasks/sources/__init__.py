"""Sources of problems: reasoning-gym, data files, and demonstrations."""
