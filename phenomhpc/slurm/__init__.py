"""Slurm: plan -> render -> submit; queue -> classify -> decide.

Pure: plan.py, render.py, decide.py.  programs.py starts Slurm's programs, facts.py asks what the cluster is, submit.py is the
only side effect of a submission, executor.py the submitit executor, inside.py what a task knows of its place.
"""
