"""Run folders as plain records, and the results computed from them: evaluations, costs, and a verdict in words."""
