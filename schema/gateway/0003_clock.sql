-- migrate:up
-- One clock for every rule about time. The shift stays zero in production; tests move it to live through a month
-- in a moment. Only the owner may write it: the gateway's own role reads it and no more.

create table gateway.clock_shift (
    only_row boolean primary key default true check (only_row),
    shift interval not null default interval '0'
);
insert into gateway.clock_shift default values;

create function gateway.clock() returns timestamptz
    language sql stable
    return now() + (select shift from gateway.clock_shift);
