from homeostat.features.main import main

main()
