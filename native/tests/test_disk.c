// SPDX-License-Identifier: MIT

/**
 * @file
 * Places and slots: what is refused and why, and that space follows use.
 */

#include <dirent.h>
#include <sys/stat.h>

#include "check.h"
#include "disk.h"

static struct usw_disk disk, second;
static struct usw_error error;
static char folder[] = "/var/tmp/uffdswap-test-XXXXXX";
static char file[sizeof(folder) + 8];

static bool folder_is_empty(void)
{
	DIR *stream = opendir(folder);
	int count = 0;

	CHECK(stream);
	while (readdir(stream))
		count++;
	closedir(stream);
	return count == 2;
}

static uint64_t held_on_disk(void)
{
	struct stat status;

	CHECK_EQ(fstat(disk.fd, &status), 0);
	return (uint64_t)status.st_blocks * 512;
}

static void write_slot(uint32_t slot, uint32_t length_bytes)
{
	static char data[USW_SLOT_BYTES] __attribute__((aligned(4096)));

	memset(data, (int)slot + 1, length_bytes);
	CHECK_EQ(pwrite(disk.fd, data, length_bytes, (off_t)usw_disk_offset(slot)), length_bytes);
}

static void test_space_follows_use(void)
{
	uint32_t slots[8];

	CHECK_EQ(usw_disk_open(&disk, folder, UINT64_MAX, &error), 0);
	CHECK(folder_is_empty());
	for (uint32_t i = 0; i < 8; i++) {
		CHECK_EQ(usw_disk_take(&disk, 256u << 10, &slots[i]), 0);
		CHECK_EQ(slots[i], i);
		write_slot(slots[i], 256u << 10);
	}
	CHECK_EQ(disk.held_bytes, 8 * (256u << 10));
	uint64_t full = held_on_disk();
	CHECK_THAT(full, >=, disk.held_bytes);
	for (uint32_t i = 0; i < 8; i += 2)
		usw_disk_give(&disk, slots[i], 256u << 10);
	CHECK_EQ(disk.held_bytes, 4 * (256u << 10));
	CHECK_THAT(held_on_disk(), <=, full - disk.held_bytes);
	CHECK_EQ(usw_disk_take(&disk, 4096, &slots[0]), 0);
	CHECK_EQ(slots[0], 0);
	CHECK_EQ(usw_disk_take(&disk, 4096, &slots[0]), 0);
	CHECK_EQ(slots[0], 2);
	CHECK_EQ(disk.peak_bytes, 8 * (256u << 10));
	usw_disk_close(&disk);
}

static void test_a_cap_holds(void)
{
	uint32_t slot;

	CHECK_EQ(usw_disk_open(&disk, folder, 3 * USW_SLOT_BYTES, &error), 0);
	for (uint32_t i = 0; i < 3; i++)
		CHECK_EQ(usw_disk_take(&disk, USW_SLOT_BYTES, &slot), 0);
	CHECK_EQ(usw_disk_take(&disk, 4096, &slot), -ENOSPC);
	CHECK_EQ(usw_disk_free_bytes(&disk, 0), 0);
	usw_disk_give(&disk, 1, USW_SLOT_BYTES);
	CHECK_EQ(usw_disk_take(&disk, 4096, &slot), 0);
	CHECK_EQ(slot, 1);
	CHECK_EQ(usw_disk_free_bytes(&disk, 0), USW_SLOT_BYTES - 4096);
	usw_disk_close(&disk);

	CHECK_EQ(usw_disk_open(&disk, folder, 4096, &error), -EINVAL);
	CHECK(strstr(error.text, "smaller than a segment"));
}

static void test_a_file_of_its_own(void)
{
	int fd;

	CHECK_EQ(usw_disk_open(&disk, file, UINT64_MAX, &error), 0);
	struct stat status;
	CHECK_EQ(stat(file, &status), 0);
	CHECK_EQ(status.st_mode & 0777, 0600);
	CHECK_EQ(usw_disk_open(&second, file, UINT64_MAX, &error), -EBUSY);
	CHECK(strstr(error.text, "another session"));
	write_slot(0, 4096);
	CHECK_EQ(usw_disk_open(&second, file, UINT64_MAX, &error), -EEXIST);
	CHECK_EQ(stat(file, &status), 0);
	CHECK_EQ(status.st_size, 4096);
	usw_disk_close(&disk);
	CHECK(folder_is_empty());

	// An empty file stays, and is empty again; one with content is nobody's to overwrite.
	fd = open(file, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
	CHECK(fd >= 0);
	CHECK_EQ(usw_disk_open(&disk, file, UINT64_MAX, &error), 0);
	write_slot(0, 4096);
	usw_disk_close(&disk);
	CHECK_EQ(stat(file, &status), 0);
	CHECK_EQ(status.st_size, 0);
	CHECK_EQ(write(fd, "precious", 8), 8);
	CHECK_EQ(usw_disk_open(&disk, file, UINT64_MAX, &error), -EEXIST);
	CHECK(strstr(error.text, "something in this file"));
	CHECK_EQ(stat(file, &status), 0);
	CHECK_EQ(status.st_size, 8);
	close(fd);
	unlink(file);
}

static void test_unusable_places(void)
{
	CHECK_EQ(usw_disk_open(&disk, "/nonexistent/place", UINT64_MAX, &error), -ENOENT);
	CHECK(strstr(error.text, "/nonexistent/place"));
	CHECK_EQ(usw_disk_open(&disk, "/dev/null", UINT64_MAX, &error), -EINVAL);
	CHECK(strstr(error.text, "neither a folder"));
	CHECK(usw_disk_open(&disk, "/proc", UINT64_MAX, &error) < 0);
	CHECK(strlen(error.text) > 20);
	CHECK(folder_is_empty());
}

int main(void)
{
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
	test_space_follows_use();
	test_a_cap_holds();
	test_a_file_of_its_own();
	test_unusable_places();
	CHECK_EQ(rmdir(folder), 0);
	return 0;
}
