"""The embedded stack: the real servers, and the services on them, supervised by one process.

    launch ──► supervisor ──► keeper ──► program   (one keeper keeps one program running)
                  │                        ▲
                  └── plan: what to run    └── servers/{kafka,postgres,redis,mlflow}, services

The supervisor writes what it knows to ``stack.json``; every command reads that file and none
talks to the supervisor except by signal, so there is no protocol that could break.
"""
