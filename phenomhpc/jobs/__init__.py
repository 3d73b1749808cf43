"""Jobs: one file per kind, with plan, run and finish; here.py runs them on this machine, submit.py on Slurm."""
