// SPDX-License-Identifier: MIT

/**
 * @file
 * Which tiers there are. See tier.h.
 */

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "deadslot.h"
#include "mover.h"
#include "tier.h"

// --- Adding and removing ------------------------------------------------------------------------

static int fail(struct usw_error *error, int code, const char *format, const char *name)
{
	error->code = code;
	snprintf(error->text, sizeof(error->text), format, name);
	return -code;
}

int usw_tier_seal(struct usw_tiers *tiers, struct usw_sealer *sealer, uint32_t segment,
		  uint32_t index, const struct usw_object *object, char *sealed)
{
	struct usw_seal_bond bond = usw_tier_bond(segment, index, object);
	struct usw_seal_tag tag;
	int ret = usw_seal(sealer, &bond, object->bytes, sealed, &tag);

	if (ret)
		return ret;
	if (object->is_whole)
		usw_tags_put(&tiers->tags, segment, index, &tag);
	else
		memcpy(sealed + object->length_bytes, &tag, sizeof(tag));
	return 0;
}

int usw_tier_unseal(const struct usw_tiers *tiers, struct usw_sealer *sealer, uint32_t segment,
		    uint32_t index, const struct usw_object *object, const char *sealed,
		    void *plain)
{
	struct usw_seal_bond bond = usw_tier_bond(segment, index, object);
	struct usw_seal_tag tag;

	if (object->is_whole)
		tag = usw_tags_get(&tiers->tags, segment, index);
	else
		memcpy(&tag, sealed + object->length_bytes, sizeof(tag));
	return usw_unseal(sealer, &bond, sealed, &tag, plain);
}

/** Key, queue and mover: with the first tier, since most sessions never need them. */
static int make_ready(struct usw_tiers *tiers)
{
	if (tiers->is_ready)
		return 0;
	if (tiers->null_fd < 0)
		tiers->null_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
	if (tiers->null_fd < 0)
		return -errno;
	int ret = tiers->is_sealed ? usw_seal_key_create(&tiers->key, usw_seal_choose_cipher()) : 0;
	if (!ret && tiers->is_sealed)
		ret = usw_sealer_init(&tiers->sealer, &tiers->key);
	if (!ret && tiers->is_sealed)
		ret = usw_tags_create(&tiers->tags, tiers->segments->capacity);
	if (!ret)
		ret = usw_aio_create(USW_MOVES_MAX, USW_AIO_URING, &tiers->aio);
	if (ret)
		goto undo;
	usw_aio_inject(tiers->aio, tiers->injection);
	atomic_store(&tiers->aio_engine, usw_aio_engine(tiers->aio));
	usw_opener_start(&tiers->opener, tiers);
	ret = -pthread_create(&tiers->mover, NULL, usw_mover_main, tiers);
	if (ret)
		goto undo;
	pthread_setname_np(tiers->mover, "uffdswap-mover");
	tiers->is_ready = true;
	return 0;
undo:
	usw_opener_stop(&tiers->opener);
	usw_aio_destroy(tiers->aio);
	tiers->aio = NULL;
	usw_tags_destroy(&tiers->tags);
	usw_sealer_deinit(&tiers->sealer);
	usw_seal_key_destroy(&tiers->key);
	return ret;
}

/** Caller is the control thread, which alone adds tiers, and holds tiers->lock. */
static struct usw_tier *find_tier(struct usw_tiers *tiers, const char *name)
{
	for (uint32_t i = 1; i < USW_TIERS_MAX; i++)
		if (atomic_load(&tiers->at[i].state) != USW_TIER_NONE &&
		    (strcmp(tiers->at[i].name, name) == 0 ||
		     strcmp(tiers->at[i].disk->path, name) == 0))
			return &tiers->at[i];
	return NULL;
}

/** Neither path nor name may be in use. Caller holds tiers->lock. */
static int refuse_double(struct usw_tiers *tiers, const char *path, const char *name,
			 struct usw_error *error)
{
	const struct usw_tier *tier = find_tier(tiers, path);

	if (tier && atomic_load(&tier->state) == USW_TIER_LEAVING)
		return fail(error, EEXIST, "%.700s is a disk tier that is just being removed",
			    path);
	if (tier)
		return fail(error, EEXIST,
			    "%.700s is a disk tier already; `uffdswap tier list` names them", path);
	if (name && (strcmp(name, "ram") == 0 || find_tier(tiers, name)))
		return fail(error, EEXIST,
			    "there is a tier %.31s already; `uffdswap tier list` names them", name);
	return 0;
}

/** A number that is free; 0: there is none. */
static uint32_t find_number(struct usw_tiers *tiers)
{
	for (uint32_t i = 1; i < USW_TIERS_MAX; i++)
		if (atomic_load(&tiers->at[i].state) == USW_TIER_NONE)
			return i;
	return 0;
}

/** `name`, or the first of disk1, disk2, ... that is free. Caller holds tiers->lock. */
static void give_name(struct usw_tiers *tiers, struct usw_tier *tier, const char *name)
{
	if (name) {
		snprintf(tier->name, sizeof(tier->name), "%s", name);
		return;
	}
	for (uint32_t i = 1;; i++) {
		char next[sizeof(tier->name)];

		snprintf(next, sizeof(next), "disk%u", i);
		if (find_tier(tiers, next))
			continue;
		strcpy(tier->name, next);
		return;
	}
}

static enum usw_tier_kind kind_of(const struct usw_disk *disk)
{
	struct stat status;

	if (disk->is_device)
		return USW_TIER_KIND_DEVICE;
	// The nameless file in a folder has no link.
	return fstat(disk->fd, &status) == 0 && status.st_nlink == 0 ? USW_TIER_KIND_FOLDER
								     : USW_TIER_KIND_FILE;
}

/** Let the number that readers know stand for this file from now on. */
static int lend_fd(struct usw_tier *tier, int file_fd)
{
	int fd = atomic_load(&tier->fd);

	fd = fd < 0 ? fcntl(file_fd, F_DUPFD_CLOEXEC, 0) : dup3(file_fd, fd, O_CLOEXEC);
	if (fd < 0)
		return -errno;
	atomic_store(&tier->fd, fd);
	return 0;
}

int usw_tiers_add(struct usw_tiers *tiers, const char *path, const char *name, uint64_t cap_bytes,
		  int priority, struct usw_error *error)
{
	pthread_mutex_lock(&tiers->lock);
	int ret = refuse_double(tiers, path, name, error);
	pthread_mutex_unlock(&tiers->lock);
	uint32_t number = find_number(tiers);

	if (ret)
		return ret;
	if (!number)
		return fail(error, ENOSPC,
			    "cannot add %.700s: there are as many tiers as there may be", path);
	struct usw_tier *tier = &tiers->at[number];
	if (!tier->disk)
		tier->disk = calloc(1, sizeof(*tier->disk));
	ret = tier->disk ? make_ready(tiers) : -ENOMEM;
	if (ret)
		return fail(error, -ret, "cannot start the disk tier: %s", strerror(-ret));
	ret = usw_disk_open(tier->disk, path, cap_bytes, error);
	if (ret)
		return ret;
	ret = lend_fd(tier, tier->disk->fd);
	if (ret) {
		usw_disk_close(tier->disk);
		return fail(error, -ret, "cannot start the disk tier: %s", strerror(-ret));
	}
	atomic_store(&tier->free_bytes, usw_disk_free_bytes(tier->disk, 0));
	tier->priority = priority;
	tier->write_retry_ns = 0;
	atomic_store(&tier->read_retry_ns, 0);
	atomic_store(&tier->write_failures, 0);
	tier->read_failed = false;
	tier->write_told_ns = tier->read_told_ns = 0;
	atomic_store(&tier->ending, USW_ENDING_NOT);
	atomic_store(&tier->align_bytes, tier->disk->align_bytes);
	pthread_mutex_lock(&tiers->lock);
	tier->id = ++tiers->added_count;
	tier->kind = kind_of(tier->disk);
	give_name(tiers, tier, name);
	atomic_store(&tier->state, USW_TIER_ACTIVE);
	pthread_mutex_unlock(&tiers->lock);
	atomic_fetch_add(&tiers->count, 1);
	return (int)tier->id;
}

/** What the other disks could take. */
static uint64_t free_elsewhere(struct usw_tiers *tiers, const struct usw_tier *leaving)
{
	uint64_t bytes = 0;

	for (uint32_t i = 1; i < USW_TIERS_MAX; i++)
		if (&tiers->at[i] != leaving && atomic_load(&tiers->at[i].state) == USW_TIER_ACTIVE)
			bytes += usw_disk_free_bytes(tiers->at[i].disk, 0);
	return bytes;
}

/** Caller holds tiers->lock, so that no tier is closed meanwhile. */
static int begin_removal(struct usw_tiers *tiers, const char *name, uint64_t ram_free_bytes,
			 struct usw_error *error)
{
	struct usw_tier *tier = find_tier(tiers, name);

	if (!tier && strcmp(name, "ram") == 0)
		return fail(
			error, EINVAL,
			"tier %.31s is the RAM of the session and stays; `uffdswap set --memory` "
			"says how much that may be",
			name);
	if (!tier)
		return fail(error, ENOENT,
			    "there is no disk tier %.700s; `uffdswap tier list` names them", name);
	if (atomic_load(&tier->state) == USW_TIER_LEAVING)
		return fail(error, EALREADY, "disk tier %s is being removed already", tier->name);
	uint64_t needed = usw_disk_held_bytes(tier->disk);
	uint64_t left = free_elsewhere(tiers, tier);
	if (ram_free_bytes < needed && left < needed - ram_free_bytes) {
		error->code = ENOSPC;
		snprintf(
			error->text, sizeof(error->text),
			"disk tier %s holds %llu MiB, and what is left has room for %llu; nothing was "
			"moved. Raise --memory or add a tier first",
			tier->name, (unsigned long long)(needed >> 20),
			(unsigned long long)((ram_free_bytes + left) >> 20));
		return -ENOSPC;
	}
	atomic_store(&tier->state, USW_TIER_LEAVING);
	return (int)tier->id;
}

int usw_tiers_remove(struct usw_tiers *tiers, const char *name, uint64_t ram_free_bytes,
		     struct usw_error *error)
{
	pthread_mutex_lock(&tiers->lock);
	int ret = begin_removal(tiers, name, ram_free_bytes, error);
	pthread_mutex_unlock(&tiers->lock);
	if (ret > 0)
		tiers->hooks.moved(tiers->hooks.context);
	return ret;
}

static enum usw_tier_condition condition_of(const struct usw_tier *tier)
{
	if (atomic_load(&tier->state) == USW_TIER_LEAVING)
		return USW_TIER_IS_LEAVING;
	if (atomic_load(&tier->write_failures))
		return USW_TIER_IS_FAILING;
	return atomic_load(&tier->free_bytes) < USW_SLOT_BYTES ? USW_TIER_IS_FULL
							       : USW_TIER_IS_ACTIVE;
}

int usw_tiers_describe(struct usw_tiers *tiers, uint32_t number, struct usw_tier_info *ret)
{
	struct usw_tier *tier = &tiers->at[number];
	int found = 0;

	// Under the lock a tier that leaves cannot be closed.
	pthread_mutex_lock(&tiers->lock);
	if (atomic_load(&tier->state) != USW_TIER_NONE) {
		*ret = (struct usw_tier_info){
			.id = tier->id,
			.kind = tier->kind,
			.condition = condition_of(tier),
			.priority = tier->priority,
			.is_encrypted = tiers->is_sealed,
			.cap_bytes = tier->disk->cap_bytes,
			.free_bytes = atomic_load(&tier->free_bytes),
			.segments = atomic_load(&tier->segments),
			.pages = atomic_load(&tier->pages),
			.original_bytes = atomic_load(&tier->pages) * USW_PAGE_BYTES,
			.stored_bytes = atomic_load(&tier->stored_bytes),
		};
		strcpy(ret->name, tier->name);
		strcpy(ret->path, tier->disk->path);
		found = 1;
	}
	pthread_mutex_unlock(&tiers->lock);
	return found;
}

/** Have the file of a tier ended that leaves and is empty. True: that is done, and it can be closed. */
static bool end_if_empty(struct usw_tiers *tiers, uint32_t number)
{
	struct usw_tier *tier = &tiers->at[number];
	char text[100];

	if (atomic_load(&tier->state) != USW_TIER_LEAVING)
		return false;
	pthread_mutex_lock(&tier->disk->lock);
	uint32_t used = tier->disk->used_slots;
	pthread_mutex_unlock(&tier->disk->lock);
	uint32_t held_back = usw_deadslots_held_back(tiers, number);
	if (used != held_back)
		return false;
	if (held_back && atomic_load(&tier->ending) == USW_ENDING_NOT) {
		snprintf(text, sizeof(text), "disk tier %s is empty", tier->name);
		tiers->hooks.report(tiers->hooks.context, USW_EVENT_TIER_EMPTY, tier->id, text);
		atomic_store_explicit(&tier->ending, USW_ENDING_ASKED, memory_order_release);
		usw_mover_wake(tiers);
	}
	return !held_back ||
	       atomic_load_explicit(&tier->ending, memory_order_acquire) == USW_ENDING_DONE;
}

/** A tier that is empty and leaves is gone. */
void usw_tiers_close_leaving(struct usw_tiers *tiers)
{
	char text[100];

	for (uint32_t i = 1; i < USW_TIERS_MAX; i++) {
		struct usw_tier *tier = &tiers->at[i];

		if (!end_if_empty(tiers, i))
			continue;
		usw_deadslots_drop(tiers, i);
		snprintf(text, sizeof(text), "disk tier %s is removed", tier->name);
		uint32_t id = tier->id; // once it is gone, another may have its place
		int ret = lend_fd(tier, tiers->null_fd);
		usw_assert(ret == 0);             // both numbers are ours and open
		pthread_mutex_lock(&tiers->lock); // the control thread may be looking at it
		usw_disk_close(tier->disk);
		atomic_store(&tier->segments, 0);
		atomic_store(&tier->pages, 0);
		atomic_store(&tier->stored_bytes, 0);
		atomic_store(&tier->state, USW_TIER_NONE);
		pthread_mutex_unlock(&tiers->lock);
		atomic_fetch_sub(&tiers->count, 1);
		tiers->hooks.report(tiers->hooks.context, USW_EVENT_TIER_REMOVED, id, text);
	}
}

void usw_tiers_keep_leaving(struct usw_tiers *tiers)
{
	char text[200];

	for (uint32_t i = 1; i < USW_TIERS_MAX; i++) {
		struct usw_tier *tier = &tiers->at[i];
		uint32_t leaving = USW_TIER_LEAVING;

		// One whose file is being ended holds nothing any more.
		if (atomic_load(&tier->ending) != USW_ENDING_NOT ||
		    !atomic_compare_exchange_strong(&tier->state, &leaving, USW_TIER_ACTIVE))
			continue;
		snprintf(text, sizeof(text),
			 "disk tier %s stays: what is left has no room any more for what it holds",
			 tier->name);
		tiers->hooks.report(tiers->hooks.context, USW_EVENT_TIER_KEPT, tier->id, text);
	}
}

// --- Beginning and end --------------------------------------------------------------------------

int usw_tiers_init(struct usw_tiers *tiers, struct usw_segments *segments, bool is_sealed,
		   const struct usw_tiers_hooks *hooks)
{
	tiers->segments = segments;
	tiers->is_sealed = is_sealed;
	tiers->hooks = *hooks;
	tiers->null_fd = -1;
	for (uint32_t i = 0; i < USW_TIERS_MAX; i++)
		atomic_store(&tiers->at[i].fd, -1);
	pthread_mutex_init(&tiers->lock, NULL);
	segments->slot_is_free = usw_deadslots_note;
	segments->slot_context = tiers;
	tiers->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	return tiers->wake_fd < 0 ? -errno : 0;
}

void usw_tiers_deinit(struct usw_tiers *tiers)
{
	if (!tiers->segments)
		return;
	if (tiers->is_ready) {
		atomic_store(&tiers->stopping, true);
		usw_mover_wake(tiers);
		pthread_join(tiers->mover, NULL);
		usw_opener_stop(&tiers->opener);
		usw_aio_destroy(tiers->aio);
		usw_tags_destroy(&tiers->tags);
		usw_sealer_deinit(&tiers->sealer);
		usw_seal_key_destroy(&tiers->key);
	}
	for (uint32_t i = 0; i < USW_MOVES_MAX; i++)
		if (tiers->moves[i].buffer)
			munmap(tiers->moves[i].buffer, USW_SLOT_BYTES);
	for (uint32_t i = 1; i < USW_TIERS_MAX; i++) {
		int fd = atomic_exchange(&tiers->at[i].fd, -1);

		usw_cleanup_close(&fd); // first: it shares the lock on the file
		if (atomic_load(&tiers->at[i].state) != USW_TIER_NONE)
			usw_disk_close(tiers->at[i].disk);
		free(tiers->at[i].disk);
	}
	free(tiers->held_back);
	usw_cleanup_close(&tiers->wake_fd);
	usw_cleanup_close(&tiers->null_fd);
	pthread_mutex_destroy(&tiers->lock);
	tiers->segments = NULL;
}
