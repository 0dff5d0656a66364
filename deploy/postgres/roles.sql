-- The gateway's two roles and its database, and the doors that PostgreSQL leaves open. Run once as the superuser; again
-- does no harm. The passwords are those of DB_PASSWORD and DB_ADMIN_PASSWORD:
--
--     psql -v gateway_password="$DB_PASSWORD" -v admin_password="$DB_ADMIN_PASSWORD" -f roles.sql postgres
--
\set ON_ERROR_STOP on
set password_encryption = 'scram-sha-256';
set log_statement = 'none';

-- reads and writes the gateway's rows, and makes nothing
select 'create role wank_gateway' where not exists (select from pg_roles where rolname = 'wank_gateway') \gexec
alter role wank_gateway login nosuperuser nocreatedb nocreaterole password :'gateway_password';

-- makes and drops slices' databases and roles (DB_ADMIN_USER); no superuser: it reads no file and starts no program
select 'create role wank_admin' where not exists (select from pg_roles where rolname = 'wank_admin') \gexec
alter role wank_admin login nosuperuser createdb createrole password :'admin_password';
-- so that it can limit the temporary files of slices
grant set on parameter temp_file_limit to wank_admin;

select 'create database wank_saas owner wank_admin template template0 encoding ''UTF8'''
where not exists (select from pg_database where datname = 'wank_saas') \gexec

-- everybody may enter every database unless somebody says otherwise
revoke all on database wank_saas, postgres, template1 from public;
grant connect on database wank_saas to wank_gateway;
grant connect on database postgres to wank_admin;

-- To move the slices of an older deployment the admin must also be able to grant the role that they shared:
select 'grant wa_slice to wank_admin with admin option' from pg_roles where rolname = 'wa_slice' \gexec
