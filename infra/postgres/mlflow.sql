-- MLflow's own database beside the services' schemas; run once, when the volume is new.
-- In UTF-8 whatever the server's locale: from any other encoding its driver hands MLflow bytes instead of text.
CREATE DATABASE mlflow TEMPLATE template0 ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C';
