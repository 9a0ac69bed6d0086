"""What nothing needs any more: rows and what lies about become a graph, the graph is marked, the rest is garbage.

One small file per kind of thing (`kinds.py` lists them); deciding is pure, `engine/gc.py` looks and carries out.
"""
