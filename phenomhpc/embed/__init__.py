"""Encoder inference: crops of a well to one row of features.

wells.py says which crops make a well (pure), encode.py turns crops into vectors, unit.py embeds one plate and commits it,
folder.py owns the names and the binding of an embeddings folder, table.py reads embeddings back, ours and others'.
"""
