"""The job with Keras: photos/, mobilenet.weights.h5 and new/ in the working folder."""

import csv
from pathlib import Path

import keras
import numpy as np

SIZE, SCHEMES = (224, 224), {"probe": 0, "last": 9, "full": None}
options = {"validation_split": 0.2, "seed": 0, "image_size": SIZE, "batch_size": 16}
if keras.backend.backend() != "tensorflow":
    options["format"] = "grain"
train, val = keras.utils.image_dataset_from_directory("photos", subset="both", **options)
classes = train.class_names
best = None
for name, layers in SCHEMES.items():
    base = keras.applications.MobileNet(
        input_shape=(*SIZE, 3), include_top=False, pooling="avg", weights="mobilenet.weights.h5"
    )
    base.trainable = layers != 0
    for layer in base.layers[:-layers] if layers else []:
        layer.trainable = False
    inputs = keras.Input((*SIZE, 3))
    x = keras.applications.mobilenet.preprocess_input(inputs)
    outputs = keras.layers.Dense(len(classes), activation="softmax")(base(x, training=False))
    model = keras.Model(inputs, outputs)
    model.compile(
        keras.optimizers.Adam(1e-3), "sparse_categorical_crossentropy", metrics=["accuracy"]
    )
    history = model.fit(train, validation_data=val, epochs=1)
    accuracy = history.history["val_accuracy"][-1]
    print(f"{name}: {accuracy:.3f}")
    if best is None or accuracy > best[0]:
        best = accuracy, model
with open("predictions.csv", "w", newline="") as file:
    writer = csv.writer(file)
    writer.writerow(["path", "label", "probability"])
    for path in sorted(Path("new").iterdir()):
        image = keras.utils.img_to_array(keras.utils.load_img(path, target_size=SIZE))
        chances = best[1].predict(image[np.newaxis], verbose=0)[0]
        writer.writerow([path, classes[chances.argmax()], chances.max()])
best[1].save("mine.keras")
