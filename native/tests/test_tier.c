// SPDX-License-Identifier: MIT

/**
 * @file
 * Moves between RAM and disks: content stays right and descriptors untouched, whatever the disk
 * does.
 */

#include "check.h"
#include "move.h"
#include "tier.h"

#define SEGMENTS 16u
#define PAGES 3600u /* about nine segments, fourteen of whole pages */

static struct usw_segments segments;
static struct usw_vswap vswap;
static struct usw_tiers tiers;
static struct usw_error error;
static uint32_t ids[PAGES];
static bool are_whole; /* nothing compresses */
static char page[USW_PAGE_BYTES];
static char folder[] = "/var/tmp/uffdswap-test-XXXXXX";
static char file[sizeof(folder) + 8];
static _Atomic uint32_t reports, emptied, removals, kept;

static void on_damaged(void *context, uint32_t id)
{
	(void)context;
	usw_vswap_note_damaged(&vswap, id);
}

static void on_moved(void *context)
{
	(void)context;
}

static void on_report(void *context, enum usw_event_kind kind, uint32_t id, const char *text)
{
	(void)context;
	CHECK(strlen(text) > 10 && id > 0);
	atomic_fetch_add(kind == USW_EVENT_TIER_REMOVED ? &removals
			 : kind == USW_EVENT_TIER_EMPTY ? &emptied
			 : kind == USW_EVENT_TIER_KEPT  ? &kept
							: &reports,
			 1);
}

static void fill_object(uint32_t number)
{
	check_fill(page, CHECK_RANDOM, number);
}

static uint32_t length_of(uint32_t number)
{
	if (are_whole)
		return USW_PAGE_BYTES;
	return number % 3 ? USW_PAGE_BYTES - number % 1000 : 100 + number % 700;
}

static void world_init(bool is_sealed, const struct usw_aio_injection *injection)
{
	const struct usw_tiers_hooks hooks = {
		.moved = on_moved, .damaged = on_damaged, .report = on_report};
	uint64_t place;

	memset(&tiers, 0, sizeof(tiers));
	atomic_store(&reports, 0);
	atomic_store(&emptied, 0);
	atomic_store(&removals, 0);
	atomic_store(&kept, 0);
	CHECK_EQ(usw_segments_create(&segments, SEGMENTS + 1), 0);
	CHECK_EQ(usw_vswap_create(&vswap, &segments, 4096), 0);
	CHECK_EQ(usw_tiers_init(&tiers, &segments, is_sealed, &hooks), 0);
	tiers.injection = injection;
	for (uint32_t i = 0; i < PAGES; i++) {
		CHECK_EQ(usw_vswap_alloc(&vswap, USW_BACKEND_MEMORY, 1, i, &ids[i]), 0);
		fill_object(i);
		CHECK_EQ(usw_segments_append(&segments, USW_LOG_LOOSE, ids[i], page, length_of(i),
					     USW_CODEC_STORED, &place),
			 0);
		CHECK(usw_vswap_repoint(&vswap, ids[i], USW_BACKEND_MEMORY, 1, USW_BACKEND_OBJECT,
					place));
	}
}

static void world_deinit(void)
{
	usw_tiers_deinit(&tiers);
	usw_vswap_destroy(&vswap);
	usw_segments_destroy(&segments);
}

/** Step until nothing is under way any more and `enough` is true. */
static void run(uint64_t demote_bytes, bool (*enough)(void))
{
	for (;;) {
		struct usw_tiers_plan plan = {.demote_bytes = demote_bytes,
					      .promote_bytes = demote_bytes ? 0 : UINT64_MAX};

		tiers.swept_ns = 0;
		if (!usw_tiers_step(&tiers, &plan) && enough())
			return;
		usw_segments_reap(&segments);
		usleep(200);
	}
}

static bool all_are_down(void)
{
	return segments.disk_segments >= 8;
}

static bool all_are_up(void)
{
	return segments.disk_segments == 0;
}

static bool one_has_failed(void)
{
	return atomic_load(&reports) > 0;
}

static bool is_removed(void)
{
	return atomic_load(&removals) > 0;
}

static uint32_t used_slots(uint32_t number)
{
	struct usw_disk *disk = tiers.at[number].disk;

	pthread_mutex_lock(&disk->lock);
	uint32_t used = disk->used_slots;
	pthread_mutex_unlock(&disk->lock);
	return used;
}

static bool is_given_back(void)
{
	return used_slots(1) == segments.disk_segments;
}

static bool both_are_full(void)
{
	return segments.disk_segments == 5;
}

static struct usw_tier_info describe(uint32_t number)
{
	struct usw_tier_info info;

	CHECK_EQ(usw_tiers_describe(&tiers, number, &info), 1);
	return info;
}

/** Tags are in RAM for as long as their whole pages are not, and as many as there are. */
static void check_tags(void)
{
	uint64_t held = are_whole && tiers.is_sealed ? segments.disk_segments * USW_PAGE_BYTES : 0;

	CHECK_EQ(tiers.tags.held_bytes, held);
	if (tiers.is_sealed)
		CHECK_EQ(usw_space_held_bytes(&tiers.tags.space), held);
	if (are_whole)
		CHECK_EQ(describe(1).stored_bytes, segments.disk_segments * USW_SEGMENT_BYTES);
}

/** Objects whose bytes in RAM are not what was stored; all must be in RAM. */
static uint32_t count_wrong(void)
{
	uint32_t wrong = 0;

	for (uint32_t i = 0; i < PAGES; i++) {
		uint64_t place = usw_word_place(usw_vswap_word(&vswap, ids[i]));
		struct usw_object object;

		CHECK(usw_segments_find(&segments, usw_place_group(place), usw_place_index(place),
					&object));
		CHECK_EQ(usw_where_tier(object.where), USW_TIER_RAM);
		CHECK_EQ(object.owner_id, ids[i]);
		CHECK_EQ(object.length_bytes, length_of(i));
		fill_object(i);
		wrong += memcmp(object.bytes, page, object.length_bytes) != 0;
	}
	return wrong;
}

static uint64_t words_digest(void)
{
	uint64_t digest = 0;

	for (uint32_t i = 0; i < PAGES; i++)
		digest = digest * 31 + usw_vswap_word(&vswap, ids[i]);
	return digest;
}

/** Down, and up again because the tier is removed: no descriptor changes, RAM follows. */
static void test_down_and_up(bool is_sealed, const struct usw_aio_injection *injection)
{
	world_init(is_sealed, injection);
	uint64_t digest = words_digest();
	uint64_t used = segments.used_bytes;
	CHECK_THAT(usw_tiers_add(&tiers, folder, NULL, UINT64_MAX, 0, &error), >, 0);
	CHECK_EQ(usw_tiers_add(&tiers, folder, NULL, UINT64_MAX, 0, &error), -EEXIST);
	run(UINT64_MAX, all_are_down);
	usw_segments_check(&segments);
	CHECK_EQ(segments.used_bytes, usw_space_held_bytes(&segments.data));
	CHECK_THAT(segments.used_bytes, <=, USW_SEGMENT_BYTES); // the open one
	CHECK_THAT(tiers.demoted_segments, >=, 8);
	check_tags();
	CHECK_EQ(words_digest(), digest);

	CHECK_THAT(usw_tiers_remove(&tiers, "disk1", UINT64_MAX, &error), >, 0);
	CHECK_EQ(usw_tiers_remove(&tiers, "disk1", UINT64_MAX, &error), -EALREADY);
	run(0, is_removed);
	CHECK_EQ(emptied, 1);
	CHECK_EQ(usw_tiers_remove(&tiers, "disk1", UINT64_MAX, &error), -ENOENT);
	CHECK_EQ(count_wrong(), 0);
	CHECK_EQ(segments.used_bytes, used);
	CHECK_EQ(segments.used_bytes, usw_space_held_bytes(&segments.data));
	CHECK_EQ(words_digest(), digest);
	CHECK_EQ(reports, 0);
	CHECK_EQ(tiers.tags.held_bytes, 0);
	usw_segments_check(&segments);
	world_deinit();
}

static int fails_while_set(void *context, const struct usw_aio_request *request)
{
	return request->is_write && atomic_load((atomic_bool *)context) ? -EIO : 0;
}

static void test_a_failed_write_leaves_all_where_it_was(void)
{
	atomic_bool failing = true;
	const struct usw_aio_injection injection = {.before = fails_while_set, .context = &failing};

	world_init(true, &injection);
	CHECK_THAT(usw_tiers_add(&tiers, folder, NULL, UINT64_MAX, 0, &error), >, 0);
	uint64_t used = segments.used_bytes;
	run(UINT64_MAX, one_has_failed);
	CHECK_EQ(tiers.at[1].write_failures, 1);
	CHECK_EQ(reports, 1);
	CHECK_EQ(segments.disk_segments, 0);
	CHECK_EQ(segments.used_bytes, used);
	CHECK_EQ(count_wrong(), 0);
	run(UINT64_MAX, is_given_back);
	check_tags();
	atomic_store(&failing, false);
	run(UINT64_MAX, all_are_down);
	CHECK_EQ(tiers.at[1].write_failures, 0);
	CHECK_EQ(reports, 1);
	world_deinit();
}

static bool two_have_failed(void)
{
	return tiers.at[1].write_failures > 1;
}

static int note_depth(void *context, const struct usw_aio_request *request)
{
	uint32_t *most = context;

	if (!request->is_write)
		*most = (uint32_t)usw_max(*most, usw_aio_under_way(tiers.aio));
	return 0;
}

/** The most reads at a time of a removal, as if programs faulted on the tier all the time or never. */
static uint32_t depth_of_removal(bool has_faults)
{
	uint32_t most = 0; // the mover's
	const struct usw_aio_injection injection = {.before = note_depth, .context = &most};

	world_init(true, &injection);
	CHECK_THAT(usw_tiers_add(&tiers, folder, NULL, UINT64_MAX, 0, &error), >, 0);
	run(UINT64_MAX, all_are_down);
	atomic_store(&tiers.at[1].faulted_ns,
		     has_faults ? usw_now_ns() + UINT64_C(3600000000000) : 0);
	CHECK_THAT(usw_tiers_remove(&tiers, "disk1", UINT64_MAX, &error), >, 0);
	run(0, is_removed);
	CHECK_EQ(count_wrong(), 0);
	world_deinit();
	return most;
}

/** A removal does not stand before the faults of programs; without any it keeps the disk busy. */
static void test_a_removal_holds_up_no_faults(void)
{
	CHECK_THAT(depth_of_removal(true), <=, 2);
	CHECK_THAT(depth_of_removal(false), >, 2);
}

/** Who asks again and again whether there is room must not be told so between two tries. */
static void test_a_disk_that_only_fails_is_no_room(void)
{
	const struct usw_tiers_plan plan = {.demote_bytes = UINT64_MAX};
	atomic_bool failing = true;
	const struct usw_aio_injection injection = {.before = fails_while_set, .context = &failing};

	world_init(true, &injection);
	CHECK_THAT(usw_tiers_add(&tiers, folder, NULL, UINT64_MAX, 0, &error), >, 0);
	CHECK(usw_tiers_have_room(&tiers));
	run(UINT64_MAX, two_have_failed);
	uint32_t failures = tiers.at[1].write_failures;
	while (tiers.at[1].write_failures < failures + 4) {
		CHECK(!usw_tiers_have_room(&tiers));
		usw_tiers_step(&tiers, &plan);
		usleep(200);
	}
	atomic_store(&failing, false);
	run(UINT64_MAX, all_are_down);
	CHECK(usw_tiers_have_room(&tiers));
	world_deinit();
}

struct reads {
	_Atomic bool failing;
	_Atomic uint32_t tries;
};

static int reads_fail(void *context, const struct usw_aio_request *request)
{
	struct reads *reads = context;

	if (request->is_write)
		return 0;
	atomic_fetch_add(&reads->tries, 1);
	return reads->failing ? -EIO : 0;
}

static bool some_tries_were_made(void)
{
	return atomic_load(&((struct reads *)tiers.injection->context)->tries) > USW_MOVES_MAX;
}

/** The pages stay there, it is tried again at leisure, and said once. */
static void test_a_failed_read_leaves_all_where_it_was(void)
{
	struct reads reads = {.failing = true};
	const struct usw_aio_injection injection = {.before = reads_fail, .context = &reads};

	world_init(true, &injection);
	CHECK_THAT(usw_tiers_add(&tiers, folder, NULL, UINT64_MAX, 0, &error), >, 0);
	run(UINT64_MAX, all_are_down);
	uint64_t down = segments.disk_segments;
	uint64_t start_ns = usw_now_ns();
	CHECK_THAT(usw_tiers_remove(&tiers, "disk1", UINT64_MAX, &error), >, 0);
	run(0, some_tries_were_made);
	// At most as many moves as there may be at a time, then a pause.
	CHECK_THAT(usw_now_ns() - start_ns, >=, 50000000);
	CHECK_EQ(segments.disk_segments, down);
	CHECK_EQ(reports, 1);
	CHECK_EQ(removals, 0);
	reads.failing = false;
	run(0, is_removed);
	CHECK_EQ(count_wrong(), 0);
	CHECK_EQ(reports, 1);
	world_deinit();
}

/** A segment that does not fit into memory half way is where it was, and holds nothing there. */
static void test_a_failed_return_holds_no_memory(void)
{
	const struct usw_tiers_plan plan = {.demote_parked = false};
	struct rlimit before, half = {.rlim_cur = USW_SEGMENT_BYTES * 3 / 2};

	world_init(true, NULL);
	CHECK_THAT(usw_tiers_add(&tiers, folder, NULL, UINT64_MAX, 0, &error), >, 0);
	run(UINT64_MAX, all_are_down);
	CHECK_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
	half.rlim_max = before.rlim_max;
	CHECK(signal(SIGXFSZ, SIG_IGN) != SIG_ERR);
	CHECK_EQ(setrlimit(RLIMIT_FSIZE, &half), 0);
	atomic_store(&usw_segments_header(&segments, 1)->is_recalled, true);
	while (usw_tiers_step(&tiers, &plan) || !reports)
		usleep(200);
	CHECK_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
	CHECK_EQ(usw_where_tier(usw_segments_header(&segments, 1)->where), 1);
	CHECK_EQ(usw_space_held_bytes(&segments.data), segments.used_bytes);
	CHECK_THAT(usw_tiers_remove(&tiers, "disk1", UINT64_MAX, &error), >, 0);
	run(0, is_removed);
	CHECK_EQ(count_wrong(), 0);
	world_deinit();
}

/** What is asked for as a whole comes, and nothing else; what is parked goes, and nothing else. */
static void test_single_segments_go_and_come(void)
{
	const struct usw_tiers_plan plan = {.demote_parked = true};

	world_init(true, NULL);
	CHECK_THAT(usw_tiers_add(&tiers, folder, NULL, UINT64_MAX, 0, &error), >, 0);
	for (uint32_t segment = 2; segment < 4; segment++)
		usw_segments_header(&segments, segment)->is_parked = true;
	while (usw_tiers_step(&tiers, &plan))
		usleep(200);
	CHECK_EQ(segments.disk_segments, 2);
	CHECK_EQ(usw_segments_parked(&segments), 0);
	atomic_store(&usw_segments_header(&segments, 3)->is_recalled, true);
	while (usw_tiers_step(&tiers, &plan))
		usleep(200);
	CHECK_EQ(segments.disk_segments, 1);
	CHECK_EQ(usw_where_tier(usw_segments_header(&segments, 2)->where), 1);
	CHECK(!usw_segments_header(&segments, 3)->is_recalled);
	CHECK_THAT(usw_tiers_remove(&tiers, "disk1", UINT64_MAX, &error), >, 0);
	run(0, is_removed);
	CHECK_EQ(count_wrong(), 0);
	world_deinit();
}

static void test_a_full_disk_takes_what_it_can(void)
{
	world_init(true, NULL);
	CHECK_THAT(usw_tiers_add(&tiers, folder, NULL, 3 * USW_SLOT_BYTES, 0, &error), >, 0);
	CHECK_THAT(usw_tiers_add(&tiers, file, NULL, 2 * USW_SLOT_BYTES, 5, &error), >, 0);
	// The one with the higher priority first, then the other, then nothing more.
	run(UINT64_MAX, both_are_full);
	CHECK_EQ(used_slots(2), 2);
	CHECK_EQ(used_slots(1), 3);
	CHECK_EQ(segments.disk_segments, 5);
	usw_segments_check(&segments);
	usw_tiers_count(&tiers);
	CHECK_EQ(describe(1).condition, USW_TIER_IS_FULL);
	CHECK_EQ(describe(1).segments, 3);
	CHECK_EQ(describe(1).original_bytes, describe(1).pages * USW_PAGE_BYTES);
	CHECK_EQ(describe(1).kind, USW_TIER_KIND_FOLDER);
	CHECK_EQ(describe(2).kind, USW_TIER_KIND_FILE);
	uint64_t stored = describe(1).stored_bytes + describe(2).stored_bytes;
	CHECK_EQ(tiers.peak_bytes, stored);
	CHECK_THAT(stored, <=, 5 * USW_SLOT_BYTES);

	// Nothing else can hold them; with RAM, all that can.
	CHECK_EQ(usw_tiers_remove(&tiers, "disk1", 0, &error), -ENOSPC);
	CHECK(strstr(error.text, "nothing was moved"));
	CHECK_THAT(usw_tiers_remove(&tiers, "disk1", UINT64_MAX, &error), >, 0);
	CHECK_THAT(usw_tiers_remove(&tiers, file, UINT64_MAX, &error), >, 0);
	run(0, all_are_up);
	segments.disk_live_bytes = USW_SEGMENT_BYTES; // from when something was still there
	while (atomic_load(&tiers.count)) {
		tiers.swept_ns = usw_now_ns(); // and it was counted just now
		usw_tiers_step(&tiers, &(struct usw_tiers_plan){0});
		usleep(200);
	}
	CHECK(is_removed());
	CHECK_EQ(segments.disk_live_bytes, 0); // or RAM would seem to hold so much garbage
	CHECK_EQ(count_wrong(), 0);
	world_deinit();
}

static bool one_is_up(void)
{
	return segments.disk_segments < 5;
}

/** A removal for which there is no room any more is given up, and nothing is lost by it. */
static void test_a_removal_can_be_given_up(void)
{
	world_init(true, NULL);
	int id = usw_tiers_add(&tiers, folder, "slow", 5 * USW_SLOT_BYTES, 0, &error);
	CHECK_THAT(id, >, 0);
	run(UINT64_MAX, both_are_full);
	CHECK_EQ(usw_tiers_remove(&tiers, "slow", UINT64_MAX, &error), id);
	CHECK_EQ(usw_tiers_add(&tiers, folder, NULL, UINT64_MAX, 0, &error), -EEXIST);
	CHECK(strstr(error.text, "being removed"));
	while (!one_is_up()) {
		usw_tiers_step(&tiers, &(struct usw_tiers_plan){0});
		usleep(200);
	}
	usw_tiers_keep_leaving(&tiers);
	CHECK_EQ(kept, 1);
	CHECK(describe(1).condition != USW_TIER_IS_LEAVING);
	run(0, is_given_back); // what had been held back for the end of the file
	CHECK_EQ(tiers.held_back_count, 0);
	run(UINT64_MAX, both_are_full);
	usw_tiers_keep_leaving(&tiers);
	CHECK_EQ(kept, 1);
	CHECK_EQ(usw_tiers_remove(&tiers, "slow", UINT64_MAX, &error), id);
	run(0, is_removed);
	CHECK_EQ(count_wrong(), 0);
	world_deinit();
}

/** Names are unique, and of equal priorities the older is filled first, whatever its number. */
static void test_names_and_order(void)
{
	world_init(true, NULL);
	CHECK_EQ(usw_tiers_add(&tiers, folder, "disk2", 2 * USW_SLOT_BYTES, 7, &error), 1);
	CHECK_EQ(usw_tiers_add(&tiers, file, "disk2", UINT64_MAX, 7, &error), -EEXIST);
	CHECK_EQ(usw_tiers_add(&tiers, file, "ram", UINT64_MAX, 7, &error), -EEXIST);
	CHECK_EQ(usw_tiers_add(&tiers, file, NULL, 2 * USW_SLOT_BYTES, 7, &error), 2);
	CHECK_EQ(strcmp(describe(2).name, "disk1"), 0);
	CHECK_EQ(usw_tiers_remove(&tiers, "disk2", 0, &error), 1);
	run(0, is_removed);
	CHECK_EQ(usw_tiers_add(&tiers, folder, NULL, 3 * USW_SLOT_BYTES, 7, &error), 3);
	CHECK_EQ(strcmp(describe(1).name, "disk2"), 0);
	while (segments.disk_segments < 2) {
		usw_tiers_step(&tiers, &(struct usw_tiers_plan){.demote_bytes = 1});
		usleep(200);
	}
	CHECK_EQ(used_slots(2), 2);
	run(UINT64_MAX, both_are_full);
	CHECK_EQ(used_slots(1), 3);
	world_deinit();
}

static int open_tier_file(void)
{
	int fd = open(file, O_RDWR | O_CREAT | O_CLOEXEC, 0600);

	CHECK(fd >= 0);
	CHECK_THAT(usw_tiers_add(&tiers, file, NULL, UINT64_MAX, 0, &error), >, 0);
	return fd;
}

static uint32_t count_known_damaged(void)
{
	uint32_t count = 0;

	for (uint32_t i = 0; i < PAGES; i++)
		count += (usw_vswap_word(&vswap, ids[i]) & USW_WORD_DAMAGED) != 0;
	return count;
}

/** Change one byte, and put one segment's bytes into another's place. */
static void test_damage_is_seen(void)
{
	static char slot[USW_SLOT_BYTES];
	char byte;

	world_init(true, NULL);
	int fd = open_tier_file();
	run(UINT64_MAX, all_are_down);
	CHECK_EQ(pread(fd, &byte, 1, 5000), 1);
	byte ^= 4;
	CHECK_EQ(pwrite(fd, &byte, 1, 5000), 1);
	CHECK_THAT(usw_tiers_remove(&tiers, "disk1", UINT64_MAX, &error), >, 0);
	run(0, is_removed);
	CHECK_EQ(count_wrong(), 1);
	CHECK_EQ(count_known_damaged(), 1);
	CHECK_EQ(tiers.damaged_objects, 1);
	CHECK_EQ(reports, 1);
	world_deinit();

	world_init(true, NULL);
	CHECK_THAT(usw_tiers_add(&tiers, file, NULL, UINT64_MAX, 0, &error), >, 0);
	run(UINT64_MAX, all_are_down);
	CHECK_EQ(pread(fd, slot, sizeof(slot), 0), sizeof(slot));
	CHECK_EQ(pwrite(fd, slot, sizeof(slot), (off_t)usw_disk_offset(1)), sizeof(slot));
	CHECK_THAT(usw_tiers_remove(&tiers, "disk1", UINT64_MAX, &error), >, 0);
	run(0, is_removed);
	CHECK_THAT(count_wrong(), >, 200);
	CHECK_EQ(count_wrong(), tiers.damaged_objects);
	CHECK_EQ(count_known_damaged(), tiers.damaged_objects);
	world_deinit();
	close(fd);
	unlink(file);
}

/** What dies on a disk gives its space back; what is mostly garbage comes up to be emptied. */
static void test_the_dead_leave(void)
{
	world_init(true, NULL);
	CHECK_THAT(usw_tiers_add(&tiers, folder, NULL, UINT64_MAX, 0, &error), >, 0);
	run(UINT64_MAX, all_are_down);
	uint32_t slots = used_slots(1);
	for (uint32_t i = 0; i < PAGES / 2; i++)
		usw_vswap_put(&vswap, ids[i]);
	usw_segments_reap(&segments);
	run(UINT64_MAX, is_given_back);
	CHECK_THAT(used_slots(1), <=, slots / 2 + 1);
	check_tags();
	uint64_t before = tiers.promoted_segments;
	for (uint32_t i = PAGES / 2; i < PAGES; i++)
		if (i % 2)
			usw_vswap_put(&vswap, ids[i]);
	run(0, all_are_up);
	CHECK_THAT(tiers.promoted_segments, >, before);
	CHECK_EQ(tiers.to_empty, tiers.promoted_segments);
	usw_segments_check(&segments);
	world_deinit();
}

/** A park ends with its own segments: others that go down all the while do not count. */
static void test_the_moves_of_others_are_not_waited_for(void)
{
	const struct usw_tiers_plan plan = {.demote_bytes = 2 * USW_SEGMENT_BYTES};

	world_init(true, NULL);
	CHECK_THAT(usw_tiers_add(&tiers, folder, NULL, UINT64_MAX, 0, &error), >, 0);
	CHECK(usw_tiers_step(&tiers, &plan));
	CHECK(!usw_moves_under_way(&tiers).has_parked);
	for (uint32_t i = 0; i < USW_MOVES_MAX; i++)
		if (atomic_load(&tiers.moves[i].stage) != USW_MOVE_IDLE)
			usw_segments_header(&segments, tiers.moves[i].segment)->is_parked = true;
	CHECK(usw_moves_under_way(&tiers).has_parked);
	while (usw_tiers_step(&tiers, &(struct usw_tiers_plan){.demote_parked = true}))
		usleep(200);
	CHECK(!usw_moves_under_way(&tiers).has_parked);
	world_deinit();
}

/** A read that still waits when its tier goes must not come upon another file of that number. */
static void test_the_number_that_readers_know_is_never_another_file(void)
{
	char byte;

	world_init(true, NULL);
	CHECK_THAT(usw_tiers_add(&tiers, folder, NULL, UINT64_MAX, 0, &error), >, 0);
	run(8 * USW_SEGMENT_BYTES, all_are_down);
	int known = atomic_load(&tiers.at[1].fd);
	CHECK_THAT(known, !=, tiers.at[1].disk->fd);
	CHECK_THAT(usw_tiers_remove(&tiers, "disk1", UINT64_MAX, &error), >, 0);
	run(0, is_removed);
	CHECK_EQ(pread(known, &byte, 1, 0), 0);
	int other = open("/dev/zero", O_RDONLY | O_CLOEXEC);
	CHECK(other >= 0 && other != known);
	close(other);
	CHECK_THAT(usw_tiers_add(&tiers, folder, NULL, UINT64_MAX, 0, &error), >, 0);
	CHECK_EQ(atomic_load(&tiers.at[1].fd), known);
	CHECK_EQ(count_wrong(), 0);
	world_deinit();
}

int main(void)
{
	const struct usw_aio_injection short_transfers = {.longest_bytes = 65536};

	check_start(100);
	if (!mkdtemp(folder)) {
		puts("no folder in /var/tmp can be made");
		return 77;
	}
	snprintf(file, sizeof(file), "%s/tier", folder);
	int fd = open(folder, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
	if (fd < 0) {
		puts("the file system of /var/tmp has no O_TMPFILE");
		rmdir(folder);
		return 77;
	}
	close(fd);
	test_down_and_up(true, NULL);
	test_down_and_up(false, NULL);
	test_down_and_up(true, &short_transfers);
	test_a_failed_write_leaves_all_where_it_was();
	test_a_disk_that_only_fails_is_no_room();
	test_a_failed_read_leaves_all_where_it_was();
	test_a_failed_return_holds_no_memory();
	test_single_segments_go_and_come();
	test_the_moves_of_others_are_not_waited_for();
	test_the_number_that_readers_know_is_never_another_file();
	test_a_full_disk_takes_what_it_can();
	test_a_removal_can_be_given_up();
	test_a_removal_holds_up_no_faults();
	test_names_and_order();
	test_damage_is_seen();
	test_the_dead_leave();
	are_whole = true;
	test_down_and_up(true, NULL);
	test_down_and_up(false, NULL);
	test_a_failed_write_leaves_all_where_it_was();
	test_damage_is_seen();
	test_the_dead_leave();
	CHECK_EQ(rmdir(folder), 0);
	return 0;
}
