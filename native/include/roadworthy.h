/* Roadworthy's engine in C: load a plan (.rwp), run it, find out what it takes and gives.
 *
 *     rw_model* model = rw_load("detector.rwp", NULL);
 *     if (!model) { fprintf(stderr, "%s\n", rw_error()); return 1; }
 *     const float* inputs[] = {pixels};            // float32, C order, of the shape that rw_input() tells
 *     float* outputs[] = {boxes};
 *     if (rw_run(model, inputs, 1, outputs, 1) != RW_OK) ...
 *     rw_free(model);
 *
 * Errors: a function that fails returns NULL or RW_ERROR and leaves a sentence for rw_error(). No C++ exception leaves it.
 * Threads: every function may be called from any thread. Calls of rw_run and rw_detect on one model take turns; each model
 * has threads of its own. rw_free must be the last call on a model. */
#ifndef ROADWORTHY_H
#define ROADWORTHY_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define RW_API __attribute__((visibility("default")))
#else
#define RW_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum { RW_OK = 0, RW_ERROR = 1 };
enum { RW_MAX_RANK = 6 };

typedef struct rw_model rw_model;

/* How to run; all zero (or a NULL pointer to it) is the default. */
typedef struct rw_options {
  int threads;      /* 1..64; 0: every core that the process may use */
  const char* isa;  /* "portable", "avx2", "avx512vnni"; NULL or "": the best there is, or what ROADWORTHY_ISA says */
  int pin;          /* not 0: each worker thread stays on one core. ROADWORTHY_PIN=1 does the same */
} rw_options;

/* An input or output of the network. */
typedef struct rw_port {
  const char* name;           /* UTF-8; valid until rw_free */
  int rank;                   /* 0..6 */
  int64_t dims[RW_MAX_RANK];  /* the first `rank` count; the rest are 1 */
  int64_t elements;           /* their product: floats in the array */
} rw_port;

/* One object found in an image. */
typedef struct rw_detection {
  float x1, y1, x2, y2;  /* corners in pixels of the image that was given, clipped to it */
  float score;           /* 0..1 */
  int32_t class_id;      /* see rw_class_name */
} rw_detection;

/* Loads a plan from a file. options may be NULL. Returns NULL when the file cannot be read, is not a valid plan, or the options
 * name something that this machine does not have. The file is not needed afterwards. */
RW_API rw_model* rw_load(const char* path, const rw_options* options);

/* The same from memory, which may be freed afterwards. */
RW_API rw_model* rw_load_memory(const void* plan, size_t bytes, const rw_options* options);

/* Frees a model and ends its threads. NULL is allowed. */
RW_API void rw_free(rw_model* model);

RW_API int rw_input_count(const rw_model* model);
RW_API int rw_output_count(const rw_model* model);

/* Describes input or output `index`. RW_ERROR when there is none. */
RW_API int rw_input(const rw_model* model, int index, rw_port* port);
RW_API int rw_output(const rw_model* model, int index, rw_port* port);

/* What the plan says about its task, by key (`kind`, `size_hw`, `class_names`, ...), as text; NULL where it says nothing.
 * The pointer is valid until rw_free. */
RW_API const char* rw_task(const rw_model* model, const char* key);

/* Runs once. inputs[i], outputs[i]: float32 arrays in C order of the shapes that rw_input and rw_output tell, aligned to 4 bytes;
 * outputs are overwritten completely. The counts must be the model's own. Allocates nothing. */
RW_API int rw_run(rw_model* model, const float* const* inputs, int input_count, float* const* outputs, int output_count);

/* Finds objects in an image: 8 bits per channel, blue, green, red, `row_stride` bytes from one row to the next (at least 3*width).
 * Writes at most `capacity` detections, best first, and their number to *count. RW_ERROR when the plan has no detection task.
 * Allocates nothing once an image of that size has been seen. */
RW_API int rw_detect(rw_model* model, const uint8_t* bgr, int height, int width, int64_t row_stride, rw_detection* detections,
                     int capacity, int* count);

/* The name of a class, NULL where the plan has none. Valid until rw_free. */
RW_API const char* rw_class_name(const rw_model* model, int class_id);

RW_API const char* rw_isa(const rw_model* model);      /* the instruction set in use */
RW_API int rw_threads(const rw_model* model);          /* with the caller's */
RW_API size_t rw_arena_bytes(const rw_model* model);   /* memory of values between operations */
RW_API size_t rw_weight_bytes(const rw_model* model);  /* memory of packed weights */

/* The sentence of the last failure on this thread; "" before the first. Valid until the next failure on this thread. */
RW_API const char* rw_error(void);

RW_API const char* rw_version(void);

#ifdef __cplusplus
}
#endif

#endif
