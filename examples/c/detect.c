/* Finds objects in an image:  detect plan.rwp image.ppm [threads]
 *
 * The image is a binary PPM (P6, 8 bits), which most tools write: `convert photo.jpg photo.ppm`.
 * Prints the objects, then what loading, a frame and the whole program took. benchmarks/c_example.py builds and runs it. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "roadworthy.h"

enum { CAPACITY = 300, REPEATS = 20 };

/* The next number of a PPM header; comments run from # to the end of the line. Returns -1 at anything else. */
static int header_number(FILE* file) {
  int c = fgetc(file);
  while (isspace(c) || c == '#') {
    if (c == '#')
      while (c != '\n' && c != EOF) c = fgetc(file);
    c = fgetc(file);
  }
  int value = -1;
  for (; isdigit(c) && value < 100000; c = fgetc(file)) value = (value < 0 ? 0 : value) * 10 + (c - '0');
  return value;
}

/* Reads a PPM as blue, green, red. NULL when it is not one. */
static unsigned char* read_ppm(const char* path, int* height, int* width) {
  FILE* file = fopen(path, "rb");
  if (!file) return NULL;
  unsigned char* pixels = NULL;
  if (fgetc(file) == 'P' && fgetc(file) == '6') {
    *width = header_number(file);
    *height = header_number(file);
    const int most = header_number(file);
    if (*width > 0 && *height > 0 && *width < 65536 && *height < 65536 && most == 255) {
      const size_t bytes = (size_t)*width * (size_t)*height * 3;
      pixels = malloc(bytes);
      if (pixels && fread(pixels, 1, bytes, file) != bytes) {
        free(pixels);
        pixels = NULL;
      }
      for (size_t i = 0; pixels && i < bytes; i += 3) {
        const unsigned char red = pixels[i];
        pixels[i] = pixels[i + 2];
        pixels[i + 2] = red;
      }
    }
  }
  fclose(file);
  return pixels;
}

static double now_ms(void) {
  struct timespec t;
  timespec_get(&t, TIME_UTC);
  return (double)t.tv_sec * 1e3 + (double)t.tv_nsec * 1e-6;
}

/* The most memory that was resident so far, in KiB; 0 where the system does not say (it does on Linux). */
static long peak_kib(void) {
  FILE* file = fopen("/proc/self/status", "r");
  if (!file) return 0;
  char line[256];
  long value = 0;
  while (fgets(line, sizeof line, file))
    if (strncmp(line, "VmHWM:", 6) == 0) value = atol(line + 6);
  fclose(file);
  return value;
}

int main(int argc, char** argv) {
  if (argc < 3 || argc > 4 || (argc == 4 && strspn(argv[3], "0123456789") != strlen(argv[3]))) {
    fprintf(stderr, "usage: detect plan.rwp image.ppm [threads]\n");
    return 2;
  }
  rw_options options = {0};
  if (argc > 3) options.threads = atoi(argv[3]);
  const double start_ms = now_ms();
  rw_model* model = rw_load(argv[1], &options);
  const double load_ms = now_ms() - start_ms;
  if (!model) {
    fprintf(stderr, "detect: %s\n", rw_error());
    return 1;
  }
  int height = 0, width = 0;
  unsigned char* image = read_ppm(argv[2], &height, &width);
  if (!image) {
    fprintf(stderr, "detect: %s is not a binary PPM of 8 bits that can be read.\n", argv[2]);
    rw_free(model);
    return 1;
  }
  rw_detection found[CAPACITY];
  int count = 0, status = RW_OK;
  double best = 1e9;
  for (int i = 0; i < REPEATS && status == RW_OK; i++) {
    const double start = now_ms();
    status = rw_detect(model, image, height, width, 3 * (int64_t)width, found, CAPACITY, &count);
    const double took = now_ms() - start;
    if (took < best) best = took;
  }
  if (status != RW_OK) {
    fprintf(stderr, "detect: %s\n", rw_error());
  } else {
    for (int i = 0; i < count; i++) {
      const char* name = rw_class_name(model, found[i].class_id);
      printf("%-16s %.3f  %7.1f %7.1f %7.1f %7.1f\n", name ? name : "?", found[i].score, found[i].x1, found[i].y1, found[i].x2, found[i].y2);
    }
    printf("%d objects, %.2f ms (best of %d), %s, %d threads\n", count, best, REPEATS, rw_isa(model), rw_threads(model));
    printf("loaded in %.1f ms, peak memory %.1f MB\n", load_ms, (double)peak_kib() / 1024);
  }
  free(image);
  rw_free(model);
  return status;
}
