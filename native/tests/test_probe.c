// SPDX-License-Identifier: MIT

/**
 * @file
 * Goal: the probe tells the truth and leaves nothing behind.
 * Method: compare its answers with the plainest direct questions, with and without the capability.
 */

#include <dirent.h>
#include <sys/syscall.h>

#include "check.h"
#include "uffd.h"
#include "uffdswap.h"

static int count_entries(const char *folder)
{
	DIR *stream = opendir(folder);
	int count = 0;

	while (stream && readdir(stream))
		count++;
	if (stream)
		closedir(stream);
	return count;
}

static int count_mappings(void)
{
	FILE *maps = fopen("/proc/self/maps", "re");
	int count = 0;
	int c;

	while (maps && (c = fgetc(maps)) != EOF)
		count += c == '\n';
	if (maps)
		fclose(maps);
	return count;
}

static void test_open_agrees_with_the_system_call(void)
{
	struct usw_probe probe;
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
	int expected = fd < 0 ? errno : 0;

	if (fd >= 0)
		close(fd);
	usw_probe_run(&probe);
	CHECK(probe.syscall_error == expected);
	CHECK(probe.syscall_error != 0 || probe.open_error == 0);
	CHECK(probe.page_bytes == getpagesize());
}

static void test_missing_features_follow_from_features(void)
{
	struct usw_probe probe;

	usw_probe_run(&probe);
	CHECK((probe.features & probe.features_missing) == 0);
	CHECK((probe.features_missing & ~USW_UFFD_FEATURES) == 0);
	CHECK(((probe.features | probe.features_missing) & USW_UFFD_FEATURES) == USW_UFFD_FEATURES);
	CHECK(!(probe.features & UFFD_FEATURE_MOVE) || probe.has_move);
}

static void test_nothing_is_left_open_or_mapped(void)
{
	struct usw_probe probe;

	usw_probe_run(&probe);
	int fds = count_entries("/proc/self/fd");
	int mappings = count_mappings();
	for (int i = 0; i < 50; i++)
		usw_probe_run(&probe);
	CHECK(count_entries("/proc/self/fd") == fds);
	CHECK(count_mappings() <= mappings + 1);
}

/** In a child that gave up root: fork events must be refused, and the probe must say so. */
_Noreturn static void answer_without_capability(void)
{
	struct usw_probe probe;

	if (setresgid(65534, 65534, 65534) || setresuid(65534, 65534, 65534))
		_exit(77);
	usw_probe_run(&probe);
	CHECK(probe.has_ptrace_capability == 0);
	CHECK_EQ(probe.api_error, EPERM);
	_exit(0);
}

static void test_without_capability_the_api_is_refused(void)
{
	int status = 0;
	pid_t child = fork();

	CHECK(child >= 0);
	if (child == 0)
		answer_without_capability();
	CHECK_EQ(waitpid(child, &status, 0), child);
	CHECK(WIFEXITED(status));
	if (WEXITSTATUS(status) == 77)
		printf("not root: the answer without capability is not tested\n");
	else
		CHECK_EQ(WEXITSTATUS(status), 0);
}

int main(void)
{
	check_start(60);
	test_open_agrees_with_the_system_call();
	test_missing_features_follow_from_features();
	test_nothing_is_left_open_or_mapped();
	test_without_capability_the_api_is_refused();
	return 0;
}
