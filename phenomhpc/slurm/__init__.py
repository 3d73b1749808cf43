"""Slurm: plan -> render -> submit; observe -> classify -> decide.

Pure: plan.py, render.py, decide.py.  programs.py starts Slurm's programs, facts.py asks what the cluster is, queue.py what
it knows of a person's jobs; submit.py is the only side effect of a submission, executor.py the submitit executor, record.py
what was submitted (slurm.json); observe.py puts the run directory and the queue together; inside.py is what a task knows
of its place.
"""
