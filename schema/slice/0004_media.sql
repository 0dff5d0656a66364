-- migrate:up
-- The name a file came with; where it lies is `original_path`, relative to the media directory. `storage_state` is
-- `stored`, or `over_quota` for what arrived when there was no room and was not kept.
alter table media_files add column if not exists file_name text;
create index if not exists media_files_newest on media_files (id desc) where storage_state = 'stored';
