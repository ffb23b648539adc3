from homeostat.router.judge.main import main

if __name__ == "__main__":
    main()
