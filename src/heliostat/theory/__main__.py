"""``python -m heliostat.theory``: print the tables of ``docs/explanation/theory.md``."""

from heliostat.theory.tables import binary_table, convergence_table, finite_table

if __name__ == "__main__":
    for table in (binary_table, finite_table, convergence_table):
        print(f"{table.__doc__}\n\n{table()}\n")
