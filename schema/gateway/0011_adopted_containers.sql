-- migrate:up
-- Slices that an older gateway made (`image` is null) get a container of ours, made anew from the image they have.
alter table gateway.slices
    -- the id of that image, written down before anything is touched: what its name stands for may change
    add column if not exists adopted_image text,
    -- it has a role of its own by now, and is to be made anew with it when it is next started
    add column if not exists renewal_wanted boolean not null default false;
