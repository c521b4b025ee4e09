"""The shipped environments: small worlds that a small model learns in minutes, one class a file."""

SHIPPED: dict[str, str] = {
    "calculator": "heliostat.tasks.environments.shipped.calculator:Calculator",
    "database": "heliostat.tasks.environments.shipped.database:Database",
    "guess-the-number": "heliostat.tasks.environments.shipped.guess_the_number:GuessTheNumber",
    "lookup": "heliostat.tasks.environments.shipped.lookup:Lookup",
    "maze": "heliostat.tasks.environments.shipped.maze:Maze",
    "python": "heliostat.tasks.environments.shipped.python_expressions:PythonExpressions",
}
"""Classes by name, as ``module:Name``: a process imports the one it runs."""
